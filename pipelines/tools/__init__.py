"""What the commands do beside an adaptation."""
