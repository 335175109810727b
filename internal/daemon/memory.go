package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// NodeShare is the share of a daemon that runs on each node.
const NodeShare = 60

// thriftyRoom is how many bytes of garbage are allowed in any case: a small heap would be collected hundreds of times while a
// burst of routes comes.
const thriftyRoom = 12 << 20

// Thrifty has a daemon hold less garbage than programs in Go do: garbage is collected when there is as much new memory as a share
// of what is in use, in percent. It may have large tables, which seldom change, so that a collection is rare whatever the share.
// GOGC in the environment overrules it.
func Thrifty(share int) {
	if os.Getenv("GOGC") == "" {
		(&collector{share: share}).follow(0)
	}
}

// collector follows the collections of garbage: it becomes garbage itself each time, and is told so.
type collector struct {
	share   int
	percent int // that was set last
	sample  [1]metrics.Sample
}

// follow sets when the next collection begins, for so many bytes in use, and waits for its end.
func (c *collector) follow(used uint64) {
	if percent := garbagePercent(used, c.share); percent != c.percent {
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
func garbagePercent(used uint64, share int) int {
	return max(share, int(100*thriftyRoom/max(used, 4<<20)))
}
