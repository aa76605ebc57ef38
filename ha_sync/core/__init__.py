"""Pure values and rules. No I/O, no clock, no asyncio: time comes in as an argument."""
