"""What Isocenter says to and reads from DICOM: archive, scanners, gateway and structured reports (PS3.3-PS3.18)."""
