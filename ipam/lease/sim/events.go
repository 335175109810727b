package sim

import (
	"fmt"
	"slices"
	"time"
)

// Event is one thing that may happen: its kind, on which node, and which of several.
type Event struct{ Kind, Node, Which int }

// event lets one thing happen. What kind, and where, does not depend on the state, so that the same seed is the same
// course with a real typha; what does not apply is left out.
func (w *World) event() {
	e := Event{w.random.IntN(1000), w.random.IntN(len(w.nodes)), w.random.IntN(1 << 16)}
	w.Events = append(w.Events, e)
	kind, n, which := e.Kind, w.nodes[e.Node], e.Which
	pick := func(length int) int { return which % length }
	switch {
	case kind < 90: // a pod starts
		if len(w.uses) < 10 {
			w.made++
			n.add(fmt.Sprint("pod-", w.made))
		}
	case kind < 170: // a pod ends
		if len(n.pods) > 0 {
			n.del(n.pods[pick(len(n.pods))])
		}
	case kind < 390:
		n.commit()
	case kind < 580: // the node's next task; a process that is gone is started before long
		if !n.up && which%4 == 0 {
			n.start()
		}
		n.work()
	case kind < 920: // a call goes on, perhaps to its end
		for range 1 + which>>8%8 {
			if len(w.net) > 0 {
				w.carry(w.net[pick(len(w.net))])
				w.check()
			}
		}
	case kind < 932: // somebody waits no longer; the call may still take effect
		if len(w.net) > 0 {
			w.giveUpOn(w.net[pick(len(w.net))])
		}
	case kind < 940:
		if len(w.net) > 0 {
			w.abandon(w.net[pick(len(w.net))])
		}
	case kind < 960:
		w.pass(time.Duration(1+which%20) * time.Second)
	case kind < 962:
		w.pass(time.Duration(1+which%10) * time.Minute)
	case kind < 970: // the process dies
		n.stop()
	case kind < 974:
		w.repeat()
	case kind < 976: // an image of the disk is taken
		n.images = append(n.images, slices.Clone(n.disk))
	case kind < 978: // the host boots again
		n.stop()
		n.restart(nil)
	case kind < 980: // from an image
		if len(n.images) > 0 {
			n.stop()
			n.restart(n.images[pick(len(n.images))])
		}
	case kind < 982: // the journal is replaced by an older one, or lost, while pods run
		n.stop()
		var old []byte
		if len(n.images) > 0 && which%2 == 0 {
			old = n.images[pick(len(n.images))]
		}
		n.replace(old)
		w.log("%s has an old journal, or none", n.name)
	case kind < 984: // or damaged
		if n.stop(); len(n.disk) > 0 {
			damaged := slices.Clone(n.disk)
			damaged[pick(len(damaged))] ^= 1
			n.replace(damaged)
			w.log("%s has a damaged journal", n.name)
		}
	case kind < 987:
		n.full = !n.full
		w.log("%s has a full disk: %v", n.name, n.full)
	case kind < 990:
		w.typha.SetFit(which%3 > 0)
		w.log("pool enabled: %v", which%3 > 0)
	case kind < 993:
		d := cooldowns[pick(len(cooldowns))]
		w.typha.SetCooldown(d)
		w.log("cool-down %s", d)
	case kind < 994: // the machine is gone for good, its node is deleted, and perhaps it comes back
		n.stop()
		n.restart(nil)
		w.typha.Remove(n.name)
		w.deleted[n.name] = true
		w.log("%s is deleted", n.name)
	case kind < 996: // the node is deleted and made again while it runs
		w.typha.Forget(n.name)
		w.deleted[n.name] = true
		w.log("%s is forgotten", n.name)
	default:
		w.typha.Register(n.name)
	}
	n.work()
	w.check()
}

// pass lets time go by. A call lives for two minutes at most.
func (w *World) pass(d time.Duration) {
	w.now += d
	for _, m := range slices.Clone(w.net) {
		if w.now-m.sent > 2*time.Minute {
			w.abandon(m)
		}
	}
}

// giveUpOn has the caller of a message wait no longer. Freeing a handle that is used again later is the one call whose
// late effect nothing guards against; runtimes name each sandbox anew.
func (w *World) giveUpOn(m *message) {
	w.log("%s waits no longer for %s", m.from.name, m.what)
	w.giveUp(m)
}
