package state

import (
	"maps"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
)

// Capabilities is what was found out about the kernel, by doing. What is in neither map was not tried: it is taken to be
// there, since the drivers say soon enough if it is not.
type Capabilities struct {
	Has   map[string]string // name (api.FeatureIPIP, …) to detail: by which means
	Lacks map[string]string // name to what is missing and what to do
}

// SetCapabilities records what the kernel can do.
func (s *State) SetCapabilities(c Capabilities) Section {
	old := s.Capabilities
	s.Capabilities = c
	if maps.Equal(old.Lacks, c.Lacks) {
		return 0 // by which means a tunnel is made is its driver's affair
	}
	s.firewall.Settings = true
	return All
}

// Lacks tells what is missing for a tunnel, and what to do; empty if nothing is.
func (s *State) Lacks(t view.Tunnel) string {
	switch t {
	case view.TunnelIPIP:
		return s.Capabilities.Lacks[api.FeatureIPIP]
	case view.TunnelVXLAN:
		return s.Capabilities.Lacks[api.FeatureVXLAN]
	}
	return ""
}
