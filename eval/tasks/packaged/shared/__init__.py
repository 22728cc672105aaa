"""What more than one of the packaged tasks uses."""
