//! SPIFFE IDs, X.509-SVIDs, trust bundles, and the TLS configurations built from them
