"""Reports: tables for a terminal, one HTML page for people."""
