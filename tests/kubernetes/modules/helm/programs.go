//go:build programs

// Package programs names what the build script builds, so that go.mod has all that they need.
package programs

import (
	_ "helm.sh/helm/v4/cmd/helm"
)
