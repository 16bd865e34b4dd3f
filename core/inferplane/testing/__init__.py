"""Stand-ins for devices, engines and time; for our tests and those of backends."""
