"""Which engine runs a call, decided once and found again."""
