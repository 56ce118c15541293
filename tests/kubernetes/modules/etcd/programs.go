//go:build programs

// Package programs names what the build script builds, so that go.mod has all that they need.
package programs

import (
	_ "go.etcd.io/etcd/server/v3"
)
