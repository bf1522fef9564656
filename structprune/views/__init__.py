"""What a person sees of a model: groups, reasons, reports, drawings, progress."""
