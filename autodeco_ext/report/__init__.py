"""Self-contained HTML pages: generated text coloured by what was decided at each token, and the demo's results."""
