//go:build lab && secondkernel

package suite

import "testing"

// TestCapabilityWithoutModule is what TestCapability has run in the second kernel.
func TestCapabilityWithoutModule(t *testing.T) { testCapability(t) }
