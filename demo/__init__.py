"""`vtc demo`: two settings side by side in a browser, on the bundled model or one of yours.

Needs `pip install "vtc[demo]"`. What it computes is in modules that know nothing of Gradio; `view` is what is shown.
"""
