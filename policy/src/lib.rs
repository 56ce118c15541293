//! The policy model and its evaluation: pure functions, no I/O
