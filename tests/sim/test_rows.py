"""Single rows, where a whole schedule would hide them: one state, one event, what is done."""
