"""The Active's side: notices what other programs changed, and reads it without harming them."""
