"""The authorization server (SMART App Launch 2.2, RFC 6749, RFC 9700)."""
