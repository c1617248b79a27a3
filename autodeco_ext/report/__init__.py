"""Self-contained HTML pages: generated text coloured by T and P, and the demo's results."""
