package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// NodeShare is the share of a daemon that runs on each node.
const NodeShare = 60

// thriftyRoom is how many bytes of garbage are allowed in any case: a small heap would be collected hundreds of times while a
// burst of routes comes.
const thriftyRoom = 12 << 20

// Thrifty has a daemon hold less garbage than programs in Go do: garbage is collected when there is as much new memory as a share
// of what is in use, in percent. It may have large tables, which seldom change, so that a collection is rare whatever the share.
// What a burst took, as the start does, goes back to the machine when it is over. GOGC in the environment overrules it.
func Thrifty(share int) {
	if os.Getenv("GOGC") == "" {
		(&collector{share: share}).follow(0)
		go giveBack()
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

// quiet is how long next to nothing must have happened until memory goes back to the machine: a burst is over then.
const quiet = 5 * time.Second

// A daemon at rest still makes a little garbage, and finding out what of the heap is garbage is not for nothing.
const (
	restful = 1 << 20 // bytes of new memory while it is quiet, at most
	worth   = 2 << 20 // bytes that a heap must have grown by, at least; a large one by an eighth
)

// giveBack has the heap give back what it does not use, each time that it is quiet and has grown.
func giveBack() {
	var h heap
	for range time.Tick(quiet) {
		if h.rests(h.read()) {
			debug.FreeOSMemory()
			_, h.least = h.read()
		}
	}
}

// heap is what was seen of the heap.
type heap struct {
	allocated uint64 // in all, at the last look
	least     uint64 // that it held of the machine's memory when it had given back last
	samples   [4]metrics.Sample
}

// rests tells whether next to nothing was allocated since the last look, and much is held for nothing, perhaps.
func (h *heap) rests(allocated, held uint64) bool {
	rests := allocated-h.allocated < restful
	h.allocated = allocated
	return rests && held > h.least+max(worth, h.least/8)
}

// read returns how much was allocated in all, and how much of the machine's memory is held.
func (h *heap) read() (allocated, held uint64) {
	for i, name := range [...]string{
		"/gc/heap/allocs:bytes", "/memory/classes/heap/objects:bytes", "/memory/classes/heap/unused:bytes", "/memory/classes/heap/free:bytes",
	} {
		h.samples[i].Name = name
	}
	metrics.Read(h.samples[:])
	for _, s := range h.samples[1:] {
		held += s.Value.Uint64()
	}
	return h.samples[0].Value.Uint64(), held
}
