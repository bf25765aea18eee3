"""What a series of numbers says: quantiles, intervals, drift. Pure functions of arrays, with numpy only."""
