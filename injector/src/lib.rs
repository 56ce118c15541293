//! The admission webhooks.
