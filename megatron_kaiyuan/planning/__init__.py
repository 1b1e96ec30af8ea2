"""What a run will need before it is started: memory by part, FLOPs, time, for each layout. Needs no torch."""
