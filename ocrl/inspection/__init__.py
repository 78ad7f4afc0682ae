"""Looking inside slots: edits, probes, codes against factors, a page to click in."""
