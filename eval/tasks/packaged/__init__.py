"""The packaged tasks: one folder a benchmark, its YAML file and, beside it, the functions that the file names.

Prompts, how answers are read and metrics are those of lmms-eval 0.7.3, so that numbers can be laid beside those that it
gives; `tests/expected` holds what its own functions answer, and the tests compare. Where it guesses, ours doesn't: an
answer that can't be read is wrong, and told as `"parsed": False`.
"""
