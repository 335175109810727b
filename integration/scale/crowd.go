package scale

import (
	"context"
	"fmt"
	"net/rpc"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/integration/process"
)

// ClientKind says what a client is.
type ClientKind string

// The kinds of client. Whole ones are typha/client. Lean ones speak the protocol over a connection like theirs, acknowledge, and
// read nothing of their first view: with a thousand of the former on the machine, most of what is measured are they. Felix ones are
// whole ones with felix's core behind, up to where the kernel would be.
const (
	Whole ClientKind = "whole"
	Lean  ClientKind = "lean"
	Felix ClientKind = "felix"
)

// ClientSpec is one client.
type ClientSpec struct {
	Kind  ClientKind
	Node  string
	State string           // file that keeps the view of a whole client
	Local []state.Endpoint // of felix: the pods that it has
	Host  state.Host       // of felix
}

// WorkerArgument is the argument by which this program is a worker: a process that holds a part of a crowd.
const WorkerArgument = "worker"

// crowd is the clients of a cluster, in several processes.
type crowd struct {
	workers []*worker
}

type worker struct {
	*process.Process
	calls *rpc.Client
}

// pipes are a worker's standard input and output.
type pipes struct {
	in  *os.File
	out *os.File
}

func (p pipes) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p pipes) Write(b []byte) (int, error) { return p.out.Write(b) }

func (p pipes) Close() error {
	p.out.Close()
	return p.in.Close()
}

// startWorkers starts n processes of the program at path.
func startWorkers(dir, path string, n int) (*crowd, error) {
	c := &crowd{}
	for i := range n {
		requests, ours, err := os.Pipe()
		if err != nil {
			return c, err
		}
		answers, theirs, err := os.Pipe()
		if err != nil {
			return c, err
		}
		p, err := launch(dir, &process.Process{Name: fmt.Sprintf("worker-%d", i), Path: path, Args: []string{WorkerArgument}, Stdin: requests, Stdout: theirs})
		requests.Close()
		theirs.Close()
		if err != nil {
			return c, err
		}
		c.workers = append(c.workers, &worker{Process: p, calls: rpc.NewClient(pipes{in: answers, out: ours})})
	}
	return c, nil
}

// stop ends all processes.
func (c *crowd) stop() {
	for _, w := range c.workers {
		_ = w.calls.Close() // a worker ends with its input
		w.End(syscall.SIGTERM)
	}
}

// each calls a method of all workers side by side.
func each[A, R any](ctx context.Context, c *crowd, method string, args func(i int) A) ([]R, error) {
	replies := make([]R, len(c.workers))
	var group errgroup.Group
	for i, w := range c.workers {
		group.Go(func() error {
			call := w.calls.Go("Worker."+method, args(i), &replies[i], make(chan *rpc.Call, 1))
			select {
			case <-call.Done:
				if call.Error != nil {
					return fmt.Errorf("%s, %s: %w", w.Name, method, call.Error)
				}
				return nil
			case <-w.Ended():
				return w.Err()
			case <-ctx.Done():
				return fmt.Errorf("%s, %s: %w", w.Name, method, ctx.Err())
			}
		})
	}
	return replies, group.Wait()
}

func same[A any](a A) func(int) A { return func(int) A { return a } }

// prepare has clients made, spread over the workers; they do nothing yet.
func (c *crowd) prepare(ctx context.Context, address, pki string, specs []ClientSpec) error {
	_, err := each[PrepareArgs, None](ctx, c, "Prepare", func(i int) PrepareArgs {
		args := PrepareArgs{Address: address, PKI: pki}
		for j := i; j < len(specs); j += len(c.workers) {
			args.Clients = append(args.Clients, specs[j])
		}
		return args
	})
	return err
}

// run has all clients connect at once, and returns how long it took until the last was in sync.
func (c *crowd) run(ctx context.Context) (time.Duration, error) {
	begin := now()
	times, err := each[None, []time.Duration](ctx, c, "Run", same(None{}))
	return latest(times) - begin, err
}

func latest(lists [][]time.Duration) (last time.Duration) {
	for _, list := range lists {
		for _, t := range list {
			last = max(last, t)
		}
	}
	return last
}

// leave has all clients go; what they have they keep.
func (c *crowd) leave(ctx context.Context) error {
	_, err := each[None, None](ctx, c, "Leave", same(None{}))
	return err
}

// await waits until all clients were told something, and returns when each was.
func (c *crowd) await(ctx context.Context, tells string) ([]time.Duration, error) {
	lists, err := each[string, []time.Duration](ctx, c, "Await", same(tells))
	var all []time.Duration
	for _, l := range lists {
		all = append(all, l...)
	}
	return all, err
}

// record has clients take notes of when they are told what, from now on.
func (c *crowd) record(ctx context.Context) error {
	_, err := each[None, None](ctx, c, "Record", same(None{}))
	return err
}

// latencies ends the notes and compares them with what was written.
func (c *crowd) latencies(ctx context.Context, stamps []Stamp) (Latencies, error) {
	sum := Latencies{Delivered: Histogram{}, Desired: Histogram{}}
	parts, err := each[[]Stamp, Latencies](ctx, c, "Latencies", same(stamps))
	for _, p := range parts {
		sum.Delivered.Merge(p.Delivered)
		sum.Desired.Merge(p.Desired)
		sum.Batches += p.Batches
	}
	return sum, err
}

// heap has each worker write what it holds into a directory, where profiles are asked for.
func (c *crowd) heap(ctx context.Context, dir string) error {
	if dir == "" {
		return nil
	}
	dir, err := filepath.Abs(dir) // workers run elsewhere
	if err != nil {
		return err
	}
	_, err = each[string, None](ctx, c, "Heap", func(i int) string { return filepath.Join(dir, fmt.Sprintf("worker-%d.heap", i)) })
	return err
}

// usage is what the workers have used together.
func (c *crowd) usage() (sum Usage, err error) {
	for _, w := range c.workers {
		u, err := usage(w.PID())
		if err != nil {
			return sum, err
		}
		sum.CPU, sum.RSS, sum.Peak = sum.CPU+u.CPU, sum.RSS+u.RSS, sum.Peak+u.Peak
	}
	return sum, nil
}

// certificate is the directory with a node's certificate.
func certificate(pki, node string) string { return filepath.Join(pki, "nodes", node) }

// gate is opened once.
type gate struct {
	once sync.Once
	open chan struct{}
}

func newGate() *gate { return &gate{open: make(chan struct{})} }
