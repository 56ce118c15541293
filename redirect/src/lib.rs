//! Traffic capture in a network namespace
