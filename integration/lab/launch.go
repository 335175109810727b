package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options say how to bring a lab up. The zero value of each field has a meaning.
type Options struct {
	// Name tells labs apart, default "lab". Any number can be up at a time.
	Name string
	// StateDir is where the lab's files lie, default DefaultStateDir(Name). It must not exist.
	StateDir string
	// BinDir holds the binaries, default the directory of the running program.
	BinDir string
	// Exe is the program that the lab's own processes run, whose main calls Hidden; default lab in BinDir, or the running
	// program if there is none.
	Exe string
	// Topology is what to build.
	Topology Topology
	// Attached makes the lab end with the launching process (its death included) unless it calls Detach.
	Attached bool
	// Progress is called as steps begin and end; it may be nil.
	Progress func(Progress)
}

// recordFile is where, in the state directory, the record lies.
const recordFile = "lab.json"

// record is what the launcher leaves on disk about the lab's first process, as the machine sees it.
type record struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
	Boot  string `json:"boot"`  // boot id
}

var labName = regexp.MustCompile(`^[a-z0-9][-a-z0-9]{0,30}$`)

// DefaultStateDir is below /run/muslin-lab for root, and below the user's runtime directory for others.
func DefaultStateDir(name string) string {
	base := "/run/muslin-lab"
	if os.Geteuid() != 0 {
		if base = os.Getenv("XDG_RUNTIME_DIR"); base == "" {
			base = fmt.Sprintf("/tmp/muslin-lab-%d", os.Geteuid())
		} else {
			base = filepath.Join(base, "muslin-lab")
		}
	}
	return filepath.Join(base, name)
}

func (o *Options) setDefaults() error {
	if o.Name == "" {
		o.Name = "lab"
	}
	if !labName.MatchString(o.Name) {
		return problem(fmt.Sprintf("%q is no name for a lab", o.Name), "use up to 31 lower-case letters, digits and dashes")
	}
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir(o.Name)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if o.BinDir == "" {
		o.BinDir = filepath.Dir(exe)
	}
	if o.Exe == "" {
		o.Exe = filepath.Join(o.BinDir, "lab")
		if unix.Access(o.Exe, unix.X_OK) != nil {
			o.Exe = exe
		}
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	for _, dir := range []*string{&o.StateDir, &o.BinDir} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	if len(controlSocket(o.StateDir)) > 100 { // sun_path holds 108 bytes
		return problem(fmt.Sprintf("the path %s is too long for a socket in it", o.StateDir), "choose a shorter --state-dir")
	}
	return nil
}

// Up brings a lab up and returns when its nodes are ready and its pods are wired. On any failure nothing is left of it.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if err := o.Topology.Validate(); err != nil {
		return nil, err
	}
	if err := checkBinaries(o.BinDir, o.Topology); err != nil {
		return nil, err
	}
	unmake, err := makeParents(o.StateDir)
	if err != nil {
		return nil, err
	}
	if err := claimStateDir(o); err != nil {
		unmake()
		return nil, err
	}
	l, err := launch(ctx, o)
	if err != nil {
		err = alsoFailed(err, removeStateDir(o.StateDir))
		unmake()
		return nil, err
	}
	return l, nil
}

// makeParents makes the directories above the state directory, and returns how to take those back that were missing.
func makeParents(stateDir string) (unmake func(), err error) {
	parent := filepath.Dir(stateDir)
	var made []string // the deepest first
	for dir := parent; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
		made = append(made, dir)
	}
	unmake = func() {
		for _, dir := range made {
			_ = os.Remove(dir) // another lab may be in it by now
		}
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		unmake()
		return nil, problem("cannot make the state directory: "+err.Error(), "choose another one with --state-dir")
	}
	return unmake, nil
}

// checkBinaries finds out before anything is made whether all programs are there.
func checkBinaries(binDir string, t Topology) error {
	var missing []string
	for _, name := range binaries(t) {
		if unix.Access(filepath.Join(binDir, name), unix.X_OK) != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return problem(fmt.Sprintf("missing in %s: %s", binDir, strings.Join(missing, ", ")), "build them with make build, or say where they are with --bin")
	}
	if t.Datastore == DatastoreEtcd && unix.Access(etcdBinary, unix.X_OK) != nil {
		return problem("datastore: etcd needs "+etcdBinary+", which is missing", "apt-get install etcd-server, or use datastore: embedded")
	}
	if slices.ContainsFunc(t.Nodes, func(n Node) bool { return n.Speaker == SpeakerBIRD2 }) && unix.Access(bird2Binary, unix.X_OK) != nil {
		return problem("speaker: bird2 needs "+bird2Binary+", which is missing", "apt-get install bird2, or use speaker: muslin")
	}
	if strings.HasPrefix(binDir+"/", "/run/") {
		return problem(binDir+" is below /run, which nodes have for themselves", "put the binaries elsewhere")
	}
	return nil
}

// claimStateDir makes the state directory, which only one lab can do, and describes the lab in it.
func claimStateDir(o Options) error {
	if err := os.Mkdir(o.StateDir, 0o700); err != nil {
		if !errors.Is(err, os.ErrExist) {
			return problem("cannot make the state directory: "+err.Error(), "choose another one with --state-dir")
		}
		if init, ok := findInit(o.StateDir); ok {
			init.close()
			return problem(fmt.Sprintf("lab %s is up already (%s)", o.Name, o.StateDir), fmt.Sprintf("lab down --name %s removes it, or choose another --name", o.Name))
		}
		return problem(fmt.Sprintf("a lab %s that did not end well is still in %s", o.Name, o.StateDir), "lab down --name "+o.Name+" removes it")
	}
	topology, err := o.Topology.text()
	if err != nil {
		return err
	}
	conf, err := json.Marshal(config{Name: o.Name, StateDir: o.StateDir, BinDir: o.BinDir, Rootless: !privileged(), Attached: o.Attached})
	if err != nil {
		return err
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(o.StateDir, "topology.yaml"), topology, 0o644),
		os.WriteFile(filepath.Join(o.StateDir, "config.json"), conf, 0o644))
	if err != nil {
		return alsoFailed(err, removeStateDir(o.StateDir))
	}
	return nil
}

// launch starts the lab's first process in namespaces of its own and follows it until the lab is ready.
func launch(ctx context.Context, o Options) (*Lab, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	logFile, err := os.Create(filepath.Join(o.StateDir, "supervisor.log"))
	if err != nil {
		return nil, errors.Join(err, ours.Close(), theirs.Close())
	}
	cmd := exec.Command(o.Exe, argInit, o.StateDir)
	cmd.Env = append(os.Environ(), envState+"="+o.StateDir)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = namespaceAttr()
	err = cmd.Start()
	logFile.Close()
	theirs.Close()
	if err != nil {
		return nil, errors.Join(launchProblem(err), ours.Close())
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is told on the wire
		close(ended)
	}()
	l := &Lab{name: o.Name, dir: o.StateDir, ended: ended}
	if l.launch, err = wireOf(ours); err == nil {
		err = writeRecord(o.StateDir, cmd.Process.Pid)
	}
	if err == nil {
		err = follow(ctx, l.launch, o.Progress)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		<-ended
		return nil, err
	}
	if !o.Attached {
		l.launch.close()
	}
	return l, nil
}

// namespaceAttr puts the lab's first process into process, mount, network, IPC and host name namespaces of its own, and without
// root into
// a user namespace where it is root.
func namespaceAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Setsid:     true,
	}
	if !privileged() {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// privileged tells whether this process may make namespaces and mounts as it is.
func privileged() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	need := uint32(1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW)
	return os.Geteuid() == 0 && data[0].Effective&need == need
}

func launchProblem(err error) error {
	if privileged() {
		return problem("cannot make namespaces: "+err.Error(), "the kernel needs CONFIG_NET_NS, CONFIG_PID_NS and CONFIG_UTS_NS")
	}
	return problem("this user may not make namespaces: "+err.Error(),
		"run it as root, or allow user namespaces (sysctl user.max_user_namespaces, and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)")
}

// follow reads the supervisor's reports until the lab is up, failed, or not wanted any more.
func follow(ctx context.Context, w *wire, progress func(Progress)) error {
	stop := context.AfterFunc(ctx, func() { _ = w.c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		var r reply
		_, err := w.receive(&r)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("bringing the lab up was interrupted: %w", context.Cause(ctx))
		case errors.Is(err, io.EOF):
			return problem("the lab's supervisor ended early", "it may have been killed; try again")
		case err != nil:
			return err
		case r.Error != nil:
			return r.Error
		case r.Final:
			return nil
		case r.Progress != nil:
			progress(*r.Progress)
		}
	}
}

func writeRecord(stateDir string, pid int) error {
	start, err := startTime(pid)
	if err != nil {
		return problem("the lab's first process ended at once", "see "+filepath.Join(stateDir, "supervisor.log"))
	}
	data, err := json.Marshal(record{PID: pid, Start: start, Boot: bootID()})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(stateDir, recordFile), data, 0o644)
}

func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "launch"), os.NewFile(uintptr(fds[1]), "launch"), nil
}
