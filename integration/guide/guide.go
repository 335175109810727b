// Package guide finds in the pages of docs what tests try from their text: blocks of code below a comment that names them, as
// <!-- tried: look -->.
package guide

import (
	"fmt"
	"os"
	"strings"
)

// Blocks are the blocks of code of a page that stand below a comment, without their fences.
func Blocks(page, comment string) ([]string, error) {
	text, err := os.ReadFile(page)
	if err != nil {
		return nil, err
	}
	var blocks []string
	for _, below := range strings.Split(string(text), "<!-- "+comment+" -->\n")[1:] {
		fence, rest, _ := strings.Cut(below, "```") // in a list all of it is indented
		_, block, _ := strings.Cut(rest, "\n")
		block, _, closed := strings.Cut(block, fence+"```")
		if strings.TrimSpace(fence) != "" || !closed {
			return nil, fmt.Errorf("%s: <!-- %s --> has no block of code right below it", page, comment)
		}
		blocks = append(blocks, strings.ReplaceAll("\n"+block, "\n"+fence, "\n")[1:])
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("%s has no <!-- %s -->", page, comment)
	}
	return blocks, nil
}

// Commands are what blocks of a console say to type.
func Commands(blocks ...string) (commands []string) {
	for _, b := range blocks {
		for line := range strings.Lines(b) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				commands = append(commands, strings.TrimSpace(command))
			}
		}
	}
	return commands
}
