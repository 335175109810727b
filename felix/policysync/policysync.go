// Package policysync serves each pod its own policy, on a socket in the directory that the CSI driver mounted into the pod: for
// proxies that enforce in the pod what the kernel cannot see, such as HTTP. Whose a socket is, the driver recorded; nothing
// that the pod says counts. It holds no policy: what a pod is told is decided in package scope, from the agent's state.
package policysync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/muslin-net/muslin/csi/client"
	"github.com/muslin-net/muslin/felix/scope"
)

// What could not be opened, or watched, is tried again after again; then sockets that went by themselves are found, too.
const again = 5 * time.Second

// Agent knows the state of the node.
type Agent interface {
	// Follow keeps a follower informed until stop is called; wake is called when it may have something to tell.
	Follow(ctx context.Context, f *scope.Follower, wake func()) (stop func())
	// Next is what a follower is to tell now.
	Next(ctx context.Context, f *scope.Follower) (scope.Update, error)
	// Deciders are the policies that may decide on what a pod receives, with the number of their ingress rules.
	Deciders(ctx context.Context, pod scope.Pod) (map[string]int, error)
}

// Server opens and closes pods' sockets as volumes come and go.
type Server struct {
	agent  Agent
	log    *slog.Logger
	counts counts

	mu    sync.Mutex // guards home
	home  string
	moved chan struct{} // home changed

	doors map[string]*door // by volume; Run's
}

// counts are for metrics.
type counts struct {
	sockets, streams atomic.Int64
	allowed, denied  atomic.Uint64
}

// New returns a server that has no home yet.
func New(agent Agent, log *slog.Logger) *Server {
	return &Server{agent: agent, log: log, moved: make(chan struct{}, 1), doors: map[string]*door{}}
}

// SetHome tells where the CSI driver keeps what it has; without it no pod is served. It may be called at any time.
func (s *Server) SetHome(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.home = dir
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

func (s *Server) at() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.home
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		switch home := s.at(); {
		case filepath.IsAbs(home):
			s.log.Info("telling pods their policy", "home", home)
			s.serve(ctx, home)
			continue
		case home != "":
			s.log.Error("pods are not told their policy: policySyncPathPrefix is not an absolute path; write "+client.DefaultHome, "policySyncPathPrefix", home)
		}
		select {
		case <-ctx.Done():
		case <-s.moved:
		}
	}
	return nil
}

// serve serves one home, until there is another one or ctx ends.
func (s *Server) serve(ctx context.Context, dir string) {
	defer s.closeAll()
	ctx, cancel := context.WithCancel(ctx)
	home, changed := client.HomeAt(dir), make(chan struct{}, 1)
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx, home, changed) })
	defer watching.Wait()
	defer cancel()
	tick := time.NewTicker(again)
	defer tick.Stop()
	for ctx.Err() == nil && s.at() == dir {
		s.reconcile(home)
		select {
		case <-ctx.Done():
		case <-s.moved:
		case <-changed:
		case <-tick.C:
		}
	}
}

// watch tells when volumes come and go.
func (s *Server) watch(ctx context.Context, home client.Home, changed chan<- struct{}) {
	for ctx.Err() == nil {
		err := home.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
		if err == nil {
			continue
		}
		s.log.Error("volumes for policy sync are looked for only from time to time", "error", err, "again", again)
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

// reconcile opens and closes sockets so that there is one for each record. What fails is tried again at the next one.
func (s *Server) reconcile(home client.Home) {
	volumes, err := home.Volumes()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("the volumes for policy sync cannot be read", "error", err)
		return
	}
	here := map[string]bool{}
	for _, id := range volumes {
		here[id] = true
		if err := s.open(home, id); err != nil {
			s.log.Error("a pod is not told its policy", "volume", id, "error", err, "again", again)
		}
	}
	for id := range s.doors {
		if !here[id] {
			s.close(id)
		}
	}
	s.counts.sockets.Store(int64(len(s.doors)))
}

// open opens the socket of a volume, if it is not open already, for the pod that the volume is of.
func (s *Server) open(home client.Home, id string) error {
	record, err := home.Load(id)
	if err != nil {
		s.close(id)
		return err
	}
	pod := scope.Pod{Namespace: record.Namespace, Name: record.Name, UID: record.UID}
	directory := home.Directory(id)
	if d, there := s.doors[id]; there {
		if d.pod == pod && d.socket.holds(directory) {
			return nil
		}
		s.close(id)
	}
	d, err := openDoor(directory, pod, s.agent, &s.counts)
	if err != nil {
		return fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	s.doors[id] = d
	s.log.Info("a pod can ask for its policy", "pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID, "volume", id)
	return nil
}

func (s *Server) close(id string) {
	d, there := s.doors[id]
	if !there {
		return
	}
	delete(s.doors, id)
	if err := d.close(); err != nil {
		s.log.Warn("a socket for policy sync is left", "volume", id, "error", err)
	}
	s.log.Info("a pod cannot ask for its policy any more", "pod", d.pod.Namespace+"/"+d.pod.Name, "uid", d.pod.UID, "volume", id)
}

func (s *Server) closeAll() {
	for id := range s.doors {
		s.close(id)
	}
	s.counts.sockets.Store(0)
}
