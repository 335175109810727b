package daemon

import (
	"runtime/debug"
	"sync"
)

// version is set by the linker for releases.
var version string

// Version is the release, or the commit that the binary was built from.
func Version() string { return built() }

// built reads what the binary says of itself, which takes a while.
var built = sync.OnceValue(func() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
})
