"""`vtc report`: figures, tables and a page about runs."""
