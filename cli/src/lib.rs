//! The byrnie command
