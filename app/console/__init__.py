"""Pages a person sees: the demonstration EHR (SMART App Launch 2.2, the EHR's side)."""
