from libs.common.migrate import run

run("gateway")
