"""`vtc bench select`: what each method's decision costs beside the prefill that it is to shorten."""
