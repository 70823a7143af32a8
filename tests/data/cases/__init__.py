"""Data sets as users have them: each kind of oddity in every format, seen alike by every path of detkit."""
