package lab

import (
	"fmt"
	"io"
	"strings"
)

// storyWidth is where text is broken, in columns.
const storyWidth = 110

// story tells what is done and seen: on a terminal as it happens, and if doc is there as a page of Markdown too.
type story struct {
	out   io.Writer
	doc   *strings.Builder
	lacks string // why IP-in-IP cannot be shown; empty if it can
	open  bool   // a block of commands is open in doc
}

// page is the page of Markdown.
func (s *story) page() string {
	s.closeBlock()
	return strings.TrimRight(s.doc.String(), "\n") + "\n"
}

func (s *story) closeBlock() {
	if s.open {
		s.doc.WriteString("```\n\n")
		s.open = false
	}
}

func (s *story) title(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(s.out, "\n== %s\n", text)
	if s.doc != nil {
		s.closeBlock()
		fmt.Fprintf(s.doc, "## %s\n\n", text)
	}
}

// text tells something in a sentence or two.
func (s *story) text(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, line := range wrap(text, storyWidth) {
		fmt.Fprintf(s.out, "  %s\n", line)
	}
	if s.doc != nil {
		s.closeBlock()
		fmt.Fprintf(s.doc, "%s\n\n", strings.Join(wrap(text, storyWidth), "\n"))
	}
}

// ran shows a command and what it said.
func (s *story) ran(r Ran) {
	prompt := "$ "
	if r.Where != "" {
		prompt = r.Where + "# "
	}
	lines := []string{prompt + r.Command}
	if r.Output != "" {
		lines = append(lines, strings.Split(r.Output, "\n")...)
	}
	s.lines(lines)
}

// lines shows lines as they are.
func (s *story) lines(lines []string) {
	for _, line := range lines {
		fmt.Fprintln(s.out, strings.TrimRight("    "+line, " "))
	}
	if s.doc == nil {
		return
	}
	if !s.open {
		s.doc.WriteString("```console\n")
		s.open = true
	}
	for _, line := range lines {
		fmt.Fprintln(s.doc, strings.TrimRight(line, " "))
	}
}

// table shows rows of cells below a head.
func (s *story) table(head []string, rows [][]string) {
	all := append([][]string{head}, rows...)
	widths := make([]int, len(head))
	for _, r := range all {
		for i, cell := range r {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for _, r := range all {
		padded := make([]string, len(r))
		for i, cell := range r {
			padded[i] = cell + strings.Repeat(" ", widths[i]-len([]rune(cell)))
		}
		fmt.Fprintln(s.out, strings.TrimRight("  "+strings.Join(padded, "  "), " "))
	}
	if s.doc == nil {
		return
	}
	s.closeBlock()
	for i, r := range all {
		fmt.Fprintf(s.doc, "| %s |\n", strings.Join(r, " | "))
		if i == 0 {
			fmt.Fprintf(s.doc, "|%s\n", strings.Repeat("---|", len(head)))
		}
	}
	s.doc.WriteString("\n")
}

// intro is what a reader of the page has to know first; on a terminal one sees it.
func (s *story) intro(t Topology) {
	if s.doc == nil {
		return
	}
	s.doc.WriteString(`# Walk-through: how a packet reaches a pod on another node

This page is the output of ` + "`make walkthrough`" + `, which runs real nodes on one machine and checks each step; ` + "`make demo`" + ` shows
the same on a terminal. Addresses of pods and times differ from run to run.

The cluster has these machines, in two subnets with a router between them:

`)
	s.doc.WriteString("| node | address | router's address | pod |\n|---|---|---|---|\n")
	for _, n := range t.Nodes {
		subnet, prefix, _ := t.subnetOf(n.Addresses[0])
		pod := "–"
		for _, p := range t.Pods {
			if p.Node == n.Name {
				pod = p.id()
			}
		}
		fmt.Fprintf(s.doc, "| %s | %s/%d | %s | %s |\n", n.Name, n.Addresses[0], prefix.Bits(), subnet.gatewayFor(prefix), pod)
	}
	s.doc.WriteString(`
The network between them behaves like that of a cloud. Its **router knows the nodes' subnets only**, no pod. And it has a
**source/destination check**: when it is on, a frame that a node sends is dropped unless its source is the node's own
address, and one that a node gets unless its destination is. ` + "`lab`" + ` below is ` + "`bin/lab`" + ` with the name of the lab.

`)
}

// wrap breaks text into lines of at most a width, at spaces.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	return append(lines, line)
}
