"""The radiologist's door: launches, viewer sessions and OHIF (SMART App Launch 2.2, client side)."""
