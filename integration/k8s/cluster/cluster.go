package cluster

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/integration/k8s"
	"github.com/muslin-net/muslin/integration/lab"
)

//go:embed machine.sh
var machineScript string

// stateBase holds the files of all clusters.
const stateBase = "/var/lib/muslin-k8s"

// patience is how long a step of the start may take before the cluster is given up, and poll how often its state is looked at.
const (
	patience = 5 * time.Minute
	poll     = 100 * time.Millisecond
)

// Options say how to bring a cluster up. The zero value of each field has a meaning.
type Options struct {
	// Name tells clusters apart, default "k8s". Any number can be up at a time.
	Name string
	// Workers is how many machines run pods, default 2. They are in two subnets in turn.
	Workers int
	// NodeRanges has Kubernetes give each worker a range of PodRange for its pods.
	NodeRanges bool
	// BinDir holds Muslin's binaries, default the directory of the running program. Of these the cluster needs lab.
	BinDir string
	// Archives are images to bring onto all workers, beside that of workloads.
	Archives []string
	// Attached makes the cluster end with the launching process, its death included.
	Attached bool
	// Progress is called as steps begin and end; it may be nil.
	Progress func(lab.Progress)
	// Log is told what takes long; it may be nil.
	Log func(string)
}

// Cluster is one that is up. Its methods may be used from many goroutines.
type Cluster struct {
	*lab.Lab
	workers int
}

func stateDir(name string) string { return filepath.Join(stateBase, name) }

// Up brings a cluster up, without a network, and returns when its workers have registered. On any failure nothing is left of it.
func Up(ctx context.Context, o Options) (_ *Cluster, err error) {
	if o.Name == "" {
		o.Name = "k8s"
	}
	if o.Workers == 0 {
		o.Workers = 2
	}
	if o.Progress == nil {
		o.Progress = func(lab.Progress) {}
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	if os.Geteuid() != 0 {
		return nil, &lab.Problem{What: "a cluster of Kubernetes needs root: it runs containers", Do: "use sudo"}
	}
	if err := reap(ctx); err != nil {
		return nil, err
	}
	s := starter{o: o}
	if err := s.step("programs and the image of workloads", func() error { return s.build(ctx) }); err != nil {
		return nil, err
	}
	s.Lab, err = lab.Up(ctx, lab.Options{
		Name: o.Name, StateDir: stateDir(o.Name), BinDir: o.BinDir, Attached: o.Attached, Progress: o.Progress,
		Topology: topology(o, s.paths),
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Down(context.WithoutCancel(ctx), o.Name))
		}
	}()
	s.workers = o.Workers
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, step := range []struct {
		name string
		fn   func(context.Context) error
	}{
		{"certificates and cgroups", s.prepare},
		{"control plane", s.startControl},
		{"containerd and images", s.startContainerds},
		{"kubelet and kube-proxy", s.startKubelets},
	} {
		if err := s.step(step.name, func() error { return step.fn(ctx) }); err != nil {
			return nil, err
		}
	}
	return &s.Cluster, nil
}

// Open returns a cluster that is up, or an error that says it is not.
func Open(name string) (*Cluster, error) {
	l, err := lab.Open(name, stateDir(name))
	if err != nil {
		return nil, err
	}
	c := &Cluster{Lab: l}
	st, err := l.Status(context.Background())
	c.workers = len(st.Nodes) - 1
	return c, err
}

// Down removes a cluster, whatever state it is in, and what others that were killed have left in the kernel. The directory of all
// clusters goes with the last one.
func Down(ctx context.Context, name string) error {
	err := errors.Join(lab.Down(ctx, name, stateDir(name)), reap(ctx))
	_ = os.Remove(stateBase) // fails while other clusters are there, as it should
	return err
}

// Down removes the cluster.
func (c *Cluster) Down(ctx context.Context) error { return Down(ctx, c.Name()) }

// List names the clusters that are up, or were not taken down well.
func List() ([]string, error) {
	entries, err := os.ReadDir(stateBase)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// Workers are the names of the machines that run pods.
func (c *Cluster) Workers() []string {
	names := make([]string, c.workers)
	for i := range names {
		names[i] = Worker(i + 1)
	}
	return names
}

// Config is how an administrator reaches the API from this process: through the lab, whose network this machine is not in.
func (c *Cluster) Config() (*rest.Config, error) {
	dir := filepath.Join(place(c.StateDir(), Control, confDir), "admin")
	var tls rest.TLSClientConfig
	var errs [3]error
	tls.CAData, errs[0] = os.ReadFile(filepath.Join(dir, "ca.crt"))
	tls.CertData, errs[1] = os.ReadFile(filepath.Join(dir, "tls.crt"))
	tls.KeyData, errs[2] = os.ReadFile(filepath.Join(dir, "tls.key"))
	server := netip.AddrPortFrom(serverAddress, apiPort)
	return &rest.Config{
		Host: "https://" + server.String(), TLSClientConfig: tls, QPS: -1,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx, Control, server) },
	}, errors.Join(errs[:]...)
}

// Kubectl runs kubectl as an administrator, on the machine of the control plane, and returns what it wrote. What it complains of
// is in the error.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	var out, complaint bytes.Buffer
	cmd := kubectl(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &complaint
	code, err := c.Exec(ctx, Control, cmd)
	if err == nil && code != 0 {
		err = fmt.Errorf("kubectl %s: exit status %d: %s", strings.Join(args, " "), code, strings.TrimSpace(complaint.String()))
	}
	return out.String(), err
}

// shell runs a script on a machine.
func (c *Cluster) shell(ctx context.Context, machine, script string, stdin io.Reader) error {
	var said bytes.Buffer
	code, err := c.Exec(ctx, machine, lab.Command{Args: []string{"sh", "-ec", script}, Stdin: stdin, Stdout: &said, Stderr: &said})
	if err == nil && code != 0 {
		err = fmt.Errorf("%s: %q: exit status %d: %s", machine, script, code, strings.TrimSpace(said.String()))
	}
	return err
}

// Environment is that of programs which talk to the API as an administrator.
func Environment() []string { return []string{"KUBECONFIG=" + confDir + "/admin/kubeconfig"} }

func kubectl(args ...string) lab.Command {
	return lab.Command{Args: append([]string{"kubectl"}, args...), Env: Environment()}
}

// auditLog is the file, for this process, with a line for each request that the API has answered.
func (c *Cluster) auditLog() string {
	return filepath.Join(place(c.StateDir(), Control, filepath.Dir(auditLog)), filepath.Base(auditLog))
}

// Import brings images, as OCI or docker archives, onto all workers.
func (c *Cluster) Import(ctx context.Context, archives ...string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range c.Workers() {
		g.Go(func() error {
			for _, a := range archives {
				if err := c.importOn(ctx, w, a); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (c *Cluster) importOn(ctx context.Context, worker, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	err = c.shell(ctx, worker, "ctr -n k8s.io images import -", f)
	if err != nil {
		return fmt.Errorf("import %s: %w", archive, err)
	}
	return nil
}

// starter brings a cluster up.
type starter struct {
	Cluster
	o       Options
	paths   map[k8s.Program]string
	archive string // the image of workloads
}

func (s *starter) step(name string, fn func() error) error {
	s.o.Progress(lab.Progress{Step: name})
	began := time.Now()
	if err := fn(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.o.Progress(lab.Progress{Step: name, Done: true, Took: time.Since(began)})
	return nil
}

// build has all programs ready, one after the other: each is built on all processors.
func (s *starter) build(ctx context.Context) error {
	s.paths = map[k8s.Program]string{}
	for _, p := range k8s.Programs {
		path, err := k8s.Build(ctx, p, s.o.Log)
		if err != nil {
			return err
		}
		s.paths[p] = path
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	s.archive, err = writeWorkloadImage(ctx, filepath.Join(cache, "muslin", "k8s"))
	return err
}

// prepare gives the machines their files and cgroups.
func (s *starter) prepare(ctx context.Context) error {
	first, err := s.FirstProcess()
	if err != nil {
		return err
	}
	id := cgroupID(s.Name(), first)
	if err := errors.Join(makeCgroups(id, first, s.Workers()), writeFiles(id, s.StateDir(), s.workers)); err != nil {
		return err
	}
	return s.each(ctx, append(s.Workers(), Control), func(ctx context.Context, machine string) error {
		_, err := s.Run(ctx, machine, "sh", "-c", machineScript, "prepare", s.paths[k8s.Kubectl])
		return err
	})
}

// startControl starts the control plane and waits until the API is served and its first objects are there.
func (s *starter) startControl(ctx context.Context) error {
	for _, p := range []string{Etcd, string(k8s.APIServer)} {
		if err := s.Start(ctx, Control, p); err != nil {
			return err
		}
	}
	if err := s.AwaitAPI(ctx); err != nil {
		return err
	}
	for _, p := range []k8s.Program{k8s.ControllerManager, k8s.Scheduler} {
		if err := s.Start(ctx, Control, string(p)); err != nil {
			return err
		}
	}
	return s.await(ctx, string(k8s.ControllerManager), func() error {
		_, err := s.Kubectl(ctx, "", "get", "serviceaccount", "default") // without it no pod can be made
		return err
	})
}

// AwaitAPI returns when the API is served.
func (c *Cluster) AwaitAPI(ctx context.Context) error {
	return c.await(ctx, string(k8s.APIServer), func() error {
		_, err := c.Kubectl(ctx, "", "get", "--raw", "/readyz")
		return err
	})
}

func (s *starter) startContainerds(ctx context.Context) error {
	return s.each(ctx, s.Workers(), func(ctx context.Context, w string) error {
		if err := s.Start(ctx, w, Containerd); err != nil {
			return err
		}
		err := s.await(ctx, Containerd, func() error {
			_, err := s.Run(ctx, w, "ctr", "version")
			return err
		})
		if err != nil {
			return err
		}
		for _, a := range append([]string{s.archive}, s.o.Archives...) {
			if err := s.importOn(ctx, w, a); err != nil {
				return err
			}
		}
		return nil
	})
}

// startKubelets starts what is left, and waits until the workers are known.
func (s *starter) startKubelets(ctx context.Context) error {
	return s.each(ctx, s.Workers(), func(ctx context.Context, w string) error {
		for _, p := range []k8s.Program{k8s.Kubelet, k8s.Proxy} {
			if err := s.Start(ctx, w, string(p)); err != nil {
				return err
			}
		}
		return s.await(ctx, string(k8s.Kubelet), func() error {
			_, err := s.Kubectl(ctx, "", "get", "node", w)
			return err
		})
	})
}

func (c *Cluster) each(ctx context.Context, machines []string, fn func(ctx context.Context, machine string) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range machines {
		g.Go(func() error { return fn(ctx, m) })
	}
	return g.Wait()
}

// await asks again and again until ok returns no error; when ctx ends, or a program of that name has ended again and again, the
// error has the end of its log.
func (c *Cluster) await(ctx context.Context, program string, ok func() error) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || c.hopeless(ctx, program) {
			return errors.Join(err, c.trouble(program))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// hopeless tells whether a program of that name has ended as often as it was started, again and again.
func (c *Cluster) hopeless(ctx context.Context, program string) bool {
	const enough = 5
	st, err := c.Status(ctx)
	return err == nil && slices.ContainsFunc(st.Processes, func(p lab.ProcessStatus) bool {
		return p.Name == program && p.State == lab.StateBackoff && p.Starts >= enough
	})
}

// trouble tells how all programs of a name are, with the ends of their logs.
func (c *Cluster) trouble(program string) error {
	st, err := c.Status(context.Background())
	if err != nil {
		return err
	}
	var all []error
	for _, p := range st.Processes {
		if p.Name == program {
			text, _ := os.ReadFile(p.Log)
			all = append(all, fmt.Errorf("%s on %s is %s, started %d times %s; its log ends with:\n%s", p.Name, p.Node, p.State, p.Starts, p.LastExit, text[max(0, len(text)-2000):]))
		}
	}
	return errors.Join(all...)
}
