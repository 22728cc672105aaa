"""`vtc eval` and `vtc sweep`: a measurement, from what is asked of which setting to the folder of its results."""
