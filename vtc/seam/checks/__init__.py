"""What a call relies on, checked in the call itself: its form, its past, what arrives in the layers."""
