package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// A thrifty daemon collects garbage when there is as much new memory as a share of what is in use, in percent, but not
// before it is worth it: a small heap would be collected hundreds of times while a burst of routes comes.
const (
	thriftyShare = 60
	thriftyRoom  = 12 << 20 // bytes
)

// Thrifty has a daemon that runs on each node hold less garbage than programs in Go do: it may have large tables, which
// seldom change, so that a collection is rare whatever the share. GOGC in the environment overrules it.
func Thrifty() {
	if os.Getenv("GOGC") == "" {
		(&collector{}).follow(0)
	}
}

// collector follows the collections of garbage: it becomes garbage itself each time, and is told so.
type collector struct {
	percent int // that was set last
	sample  [1]metrics.Sample
}

// follow sets when the next collection begins, for so many bytes in use, and waits for its end.
func (c *collector) follow(used uint64) {
	if percent := garbagePercent(used); percent != c.percent {
		c.percent = percent
		debug.SetGCPercent(percent)
	}
	runtime.SetFinalizer(c, func(c *collector) {
		c.sample[0].Name = "/gc/heap/live:bytes"
		metrics.Read(c.sample[:])
		c.follow(c.sample[0].Value.Uint64())
	})
}

// garbagePercent is the garbage that is allowed beside so many bytes in use, in percent of them. The runtime takes 4 MiB for
// the least that is in use.
func garbagePercent(used uint64) int {
	return max(thriftyShare, int(100*thriftyRoom/max(used, 4<<20)))
}
