"""`vtc report`: figures, tables and a page about runs, and the statistics under them."""
