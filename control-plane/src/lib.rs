//! The control plane: issuance, discovery, policy distribution
