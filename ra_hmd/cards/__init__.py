"""Model cards and data sheets, filled from what runs, evaluations, imports and banks recorded."""
