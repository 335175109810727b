package main

import (
	"errors"

	"github.com/muslin-net/muslin/felix/dataplane/link"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/felix/store"
	"github.com/muslin-net/muslin/ipam/lease"
)

// sift tells which of the endpoints that an earlier felix left are still there. Gone are those whose interface is (a
// reboot, a pod killed meanwhile, a crash within ADD) and those on their way out (a crash within DEL).
func sift(found map[string]state.Endpoint, links *link.Driver) (stay []state.Endpoint, gone map[string]state.Endpoint, err error) {
	gone = map[string]state.Endpoint{}
	var errs []error
	for name, e := range found {
		there, err := links.Exists(e.Interface)
		switch {
		case err != nil:
			errs = append(errs, err)
		case there && !e.Leaving:
			stay = append(stay, e)
		default:
			gone[name] = e
			errs = append(errs, links.Unwire(e.Interface))
		}
	}
	return stay, gone, errors.Join(errs...)
}

// living are the addresses of pods that run on the node.
func living(stay []state.Endpoint) (out []lease.Claim) {
	for _, e := range stay {
		for _, a := range e.Addresses {
			out = append(out, lease.Claim{Addr: a, Handle: e.Handle(), Attributes: server.Attributes(e)})
		}
	}
	return out
}

// forget frees the addresses of endpoints that are gone. A record stays as long as it is the only one that knows of it.
func forget(gone map[string]state.Endpoint, records *store.Dir[state.Endpoint], pool *lease.Pool) error {
	var errs []error
	for name, e := range gone {
		if err := pool.Free(e.Handle()); err == nil {
			errs = append(errs, records.Delete(name))
		}
	}
	return errors.Join(errs...)
}
