"""The harness behind `vtc`: tasks, measurements, reports and benches, the bundled models and what is trained."""
