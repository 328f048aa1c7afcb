"""Public roots and intermediates of vendors, pinned: one bundle for each."""
