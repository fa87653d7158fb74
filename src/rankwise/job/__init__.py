"""The parts of a sweep: one bank, what is saved of it, what it comes to, how it goes on."""
