"""What is known of each stored format, one file a format; nothing here knows what a run is."""
