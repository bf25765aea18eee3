"""Statistics of a series of numbers: quantiles, intervals, drift. Pure functions of arrays, with numpy only."""
